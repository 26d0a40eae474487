"""The task `twinvoice`: which of four replies a given person wrote, known by what the person wrote before."""
