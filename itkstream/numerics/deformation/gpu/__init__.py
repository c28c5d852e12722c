"""The descent on a GPU: the same decisions, with array operations of a device."""
