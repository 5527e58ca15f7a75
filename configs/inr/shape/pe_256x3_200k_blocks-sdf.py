_base_ = '../_base_/shape-256_200k_sdf.py'
model = dict(network=dict(encoding=dict(type='mmext.PositionalEncoding', num_octaves=6)))
