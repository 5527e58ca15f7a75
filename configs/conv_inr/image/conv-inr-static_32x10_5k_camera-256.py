_base_ = './conv-inr_32x10_5k_camera-256.py'
model = dict(network=dict(reparam='static'))
