_base_ = '../_base_/blocks-3v_500.py'
model = dict(network=dict(branches='split', octaves=3))
