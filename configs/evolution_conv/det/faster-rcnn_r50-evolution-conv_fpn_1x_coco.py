_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

# The first stage is frozen in the base, where a new layer would learn nothing.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[
            dict(
                match=r'layer\d\.\d+\.conv2',
                stage=(2, 3, 4),
                to=dict(
                    type='mmext.EvolutionConv2d',
                    function=dict(type='self_attention', heads=8),
                    kernel_size=7,
                    padding=3,
                ),
            )
        ],
    ),
)
