"""Views of records: data frames, comparisons, tables, plots, pages; and submissions."""
