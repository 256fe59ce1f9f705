"""The student: what it is (config), computes (model), where it lies (sharding), how it is stored (hf)."""
