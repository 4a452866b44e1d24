"""Asking strangers for their pictures: who may be asked, who is next, and what came of it."""
