export declare const maxPackageBytes: number
export declare function stagePackage(folder?: string): Promise<string>
export declare function makePackage(target?: string): Promise<string>
