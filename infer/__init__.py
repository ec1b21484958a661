"""Weights and a prompt to pictures, sheets and reports."""
