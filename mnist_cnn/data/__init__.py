"""Source files -> checked uint8 arrays, prepared once by tensorflow-datasets."""
