"""Networks, losses and optimizers: what is trained, as plain torch, knowing neither files nor Ray.

Nothing is re-exported: `batchtrain.models.custom` hashes user code without importing torch.
"""
