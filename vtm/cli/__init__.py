"""What commands share: errors in one sentence, checks of overrides, run folders and child processes."""
