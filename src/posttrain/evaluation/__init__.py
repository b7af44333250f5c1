"""What models can do: tasks, the suite that runs them, means and paired differences with their intervals."""
