"""How a pocket creature is drawn: pen, shapes, palettes, parts, faces, bodies, poses and captions."""
