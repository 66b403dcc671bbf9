"""From records to what is read: frames, comparisons, tables, plots, pages, submissions."""
