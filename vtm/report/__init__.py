"""The report on runs, `python -m vtm.report`: the settings that differ, their scores over seeds, what they cost."""
