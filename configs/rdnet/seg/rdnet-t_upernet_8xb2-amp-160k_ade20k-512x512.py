_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'

# The released segmentors normalize each output. No weights are loaded: train the classifier in ../cls first.
out_norm = dict(type='GN', num_groups=1)
model = dict(
    backbone=dict(_delete_=True, type='mmext.RDNet', arch='T', out_norm=out_norm, drop_path_rate=0.1),
    decode_head=dict(in_channels=[256, 440, 744, 1040]),
    auxiliary_head=dict(in_channels=744),
)
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor', paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0)
)
