"""How a pocket creature is drawn: paint, shapes, parts, faces, bodies, poses and captions."""
