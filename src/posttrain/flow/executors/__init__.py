"""Where steps run. An executor decides the machine and the moment, never the result."""
