"""A brain registered to an atlas: how both lie, the annotation carried over, regions measured."""
