"""Official lists of multiple-choice questions about videos; one file per list says where its format is documented."""
