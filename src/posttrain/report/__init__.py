"""What a run gave, on one page: tables, curves, answers side by side, costs, provenance."""
