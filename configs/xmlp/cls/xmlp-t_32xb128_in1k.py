_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

# The paper's recipe is not known to us. This is the host's for networks without convolutions of that age.
model = dict(
    backbone=dict(_delete_=True, type='mmext.XMLP', arch='T', img_size=224, out_indices=(3,), drop_path_rate=0.1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(in_channels=512),
)
