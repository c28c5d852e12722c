"""ngff"""
