_base_ = './relu_28x10.py'
model = dict(network=dict(encoding=dict(type='mmext.PositionalEncoding', num_octaves=10)))
