"""Objectives: small classes that own their extra modules and turn a batch into loss terms."""
