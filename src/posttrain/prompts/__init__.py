"""Where rows come from, and which of them are kept."""
