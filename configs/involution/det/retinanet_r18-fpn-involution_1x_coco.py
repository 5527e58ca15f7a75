_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'

# In the place of the 3x3 convolutions of the pyramid, as in the paper. The extra levels keep theirs.
model = dict(
    neck=dict(
        type='mmext.swap_layers',
        model='FPN',
        rules=[dict(match=r'fpn_convs\.[0-2]\.', to=dict(type='mmext.Involution2d', kernel_size=7, padding=3))],
    ),
)
