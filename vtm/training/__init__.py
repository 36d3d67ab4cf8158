"""Training of a run: LightningModule, checkpoints, optimization, callbacks, loggers and the results writer."""
