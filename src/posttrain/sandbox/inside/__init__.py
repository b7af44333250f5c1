"""What runs inside the sandbox. Standard library only: nothing else of posttrain can be imported there."""
