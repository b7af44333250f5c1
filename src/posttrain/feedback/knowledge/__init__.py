"""What a model knows: probing it, questions nobody can answer, and rows that teach it to say so."""
