"""Servers: the HTTP interface, the page, the screening page."""
