"""Tests of human similarity: does the image tower judge images as people do?"""
