"""Renders the documents of reports: as JSON, Markdown, HTML and PDF, in processes of their own."""
