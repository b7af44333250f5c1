"""The flow: a recipe becomes steps; what a step makes is stored under the hash of all that determines it."""
