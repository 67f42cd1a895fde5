"""From result files to tables, plots and one HTML page."""
