"""HTML reports: one self-contained page, its templates and its charts."""
