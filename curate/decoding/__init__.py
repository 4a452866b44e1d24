"""Pictures from strangers: decoded within limits, made smaller, blurred, stored; in processes of their own where they are new."""
