_base_ = 'faster_rcnn_fpn.py'

model = dict(
    neck=[
        dict(
            type='mmext.DenseFPN',
            in_channels=[64, 128, 256],
            out_channels=64,
            num_outs=3,
            stack_times=2,
            norm_cfg=dict(type='BN'),
        ),
        dict(type='mmext.SCP', in_channels=64, num_outs=3),
    ],
    roi_head=dict(
        bbox_roi_extractor=dict(
            _delete_=True,
            type='mmext.HierarchicalRoIExtractor',
            direction='bottom_up',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2),
            out_channels=64,
            featmap_strides=[8, 16, 32],
        )
    ),
)
