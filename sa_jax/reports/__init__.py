"""HTML pages, charts and tables of results."""
