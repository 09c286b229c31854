"""What a person reads of results: HTML pages, charts and tables."""
