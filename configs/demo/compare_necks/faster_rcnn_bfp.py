_base_ = 'faster_rcnn_fpn.py'

model = dict(
    neck=[
        _base_.model.neck,
        dict(type='BFP', in_channels=64, num_levels=3, refine_level=1, refine_type='non_local'),
    ]
)
