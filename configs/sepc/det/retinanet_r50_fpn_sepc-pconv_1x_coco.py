_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(
    neck=[
        _base_.model.neck,
        dict(type='mmext.SEPC', in_channels=256, out_channels=256, num_outs=5),
    ],
    # The stock head, fed with a pair of maps per level in place of its own stacked convolutions.
    bbox_head=dict(
        type='mmext.PairHead',
        head='mmdet.RetinaHead',
        loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=0.11, loss_weight=1.0),
    ),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
