"""A page on which a browser runs a network without Python: its template, scripts and builder."""
