"""deformation"""
