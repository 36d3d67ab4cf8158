"""What commands share: mistakes told in one sentence, misspelt overrides, run folders and child processes."""
