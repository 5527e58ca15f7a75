_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    data_preprocessor=dict(pad_size_divisor=64),
    neck=[
        dict(
            type='mmext.DenseFPN',
            in_channels=[256, 512, 1024, 2048],
            out_channels=256,
            num_outs=5,
            stack_times=5,
            norm_cfg=norm_cfg,
        ),
        dict(type='mmext.SCP', in_channels=256, num_outs=5),
    ],
    roi_head=dict(bbox_roi_extractor=dict(type='mmext.HierarchicalRoIExtractor', direction='bottom_up')),
)
