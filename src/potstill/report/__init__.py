"""The report a run ends with, one self-contained HTML page, and the card of the model folder."""
