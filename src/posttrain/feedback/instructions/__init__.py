"""Instructions that a program can verify: one small checker a kind, and the judge that asks them."""
