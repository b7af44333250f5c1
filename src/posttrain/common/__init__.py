"""What every room uses: errors, strict configs, the registry, the step seam, whole-file writes, progress."""
