/** Components that are rendered again only when what they show has changed. */
import { Component, type ComponentChildren, type FunctionComponent, h } from "preact";

export function memo<Props extends object>(
  render: (props: Props) => ComponentChildren,
  same: (before: Props, after: Props) => boolean,
): FunctionComponent<Props> {
  const Inner = render as FunctionComponent<Props>;
  class Memo extends Component<Props> {
    override shouldComponentUpdate(next: Readonly<Props>): boolean {
      return !same(this.props, next);
    }

    override render(): ComponentChildren {
      return h(Inner, this.props as never);
    }
  }
  return Memo as unknown as FunctionComponent<Props>;
}
