_base_ = '../_base_/shape-64_500.py'
model = dict(network=dict(encoding=dict(type='mmext.PositionalEncoding', num_octaves=5), norm_cfg=dict(type='BN')))
