"""Show data to people: true colour of bands, tables of Markdown."""
